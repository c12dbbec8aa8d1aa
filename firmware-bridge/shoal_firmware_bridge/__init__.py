"""The links between a board and its microcontrollers. It passes frames on and stores nothing."""
