"""Key-point control of generative engines: the thin package behind the numbered notebooks."""

__version__ = "0.1.0"
