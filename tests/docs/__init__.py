"""Tests of the documentation: its code runs, and it builds."""
