"""Who the boards are: the authority, tokens, enrolment, renewal, revocation, and the door for all that."""
