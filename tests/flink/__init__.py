"""A Beam job server and a Flink cluster from pinned jars, for tests and for the chaos run."""
