"""Figures and the page: draws findings, panels and tables; concludes nothing."""
