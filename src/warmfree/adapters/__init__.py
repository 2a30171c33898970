"""warmfree inside of other libraries' training loops. Each module needs its library, and nothing else does."""
