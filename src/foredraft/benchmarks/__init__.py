"""What `foredraft bench` and `foredraft record` measure, over `foredraft.bench` and its clock."""
