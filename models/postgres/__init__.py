"""PostgreSQL's hosts: which of them is the database, which are refused, and the pool that keeps to the right one."""
