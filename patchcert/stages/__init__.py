"""The same work spread over a Ray cluster: training, voting, answering studies."""
