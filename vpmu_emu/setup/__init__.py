"""What a user brings becomes a record: guest, host programs, events and filters; nothing runs here."""
