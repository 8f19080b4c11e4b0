"""Texts, request mixes, and driving a server's endpoint."""
