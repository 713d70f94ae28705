"""Dual-space knowledge distillation: the framework (heads, divergences, alignment) and DSKD itself."""
