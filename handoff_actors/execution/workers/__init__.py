"""What runs functions: lanes on threads, in processes and on an event loop, and their roster."""
