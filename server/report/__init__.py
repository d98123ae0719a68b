"""Report: a finished run as one page for people, one file for programs, and one table for the terminal."""

from server.report.closing import closing_table
from server.report.html import write_report

__all__ = ["closing_table", "write_report"]
