"""Who is let in: tokens and their keys, users, rates, revocation and the audit log."""
