"""The fleet's controller and the operator's command line. It talks to the boards in messages only."""
