"""Push providers: Apple, Google and Web Push, and the client that reaches them."""
