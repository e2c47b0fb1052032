"""This project against its peers: who is how fast at the same work, in one run on one machine, with results that are compared too."""
