"""Plan, cell, record, verdict, report."""
