"""What is asked when: phases, the rows of an epoch, and when validation stops to improve."""
