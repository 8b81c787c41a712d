"""The other machine: the way to it, and what is said on that way.

Rules: paramiko is imported in ssh.py, packets.py and way.py, and nowhere else. What comes from the other side is decoded by
ckpt.codec.messages, and by nothing else; but for the set-up of a host (conversation.py): there is no ckpt yet that
speaks in messages.
"""
