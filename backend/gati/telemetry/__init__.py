"""What a served chain tells of itself: counters on Triton's page, minutes on disk."""
