"""A laboratory for one question: what batch size should I use, and why?"""

__version__ = "0.1.0"
