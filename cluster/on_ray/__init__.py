"""Jobs on a Ray cluster that runs already: submitted through its Jobs API, trained through Ray Train."""
