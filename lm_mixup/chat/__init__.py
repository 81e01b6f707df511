"""Judges and teachers: chat models behind a server or in this process, limits, kept replies."""
