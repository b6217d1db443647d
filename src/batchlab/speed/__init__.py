"""How fast this machine trains: the engine beside plain loops and beside the hardware's limit."""
