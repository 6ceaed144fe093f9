"""Relay of one request: parse, choose, forward, fail over, respond, account."""
