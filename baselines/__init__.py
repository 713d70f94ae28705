"""Every method DSKD is compared with, one file per family."""
