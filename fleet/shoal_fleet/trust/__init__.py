"""The signed record of which releases are real (TUF): the key ceremony, and what the controller keeps fresh of it."""
