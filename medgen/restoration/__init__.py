"""Restoration of real scans."""
