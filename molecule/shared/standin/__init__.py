"""The stand-in: containers that play EL8 hosts, one of them with two K80 boards, and what they need."""
