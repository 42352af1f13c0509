"""What reads topics: the writers. Agents are thin: take a batch, deliver, acknowledge in order."""
