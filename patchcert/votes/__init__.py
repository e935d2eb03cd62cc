"""What the model said: scores rounded once, vote tables, draws of views."""

from patchcert.votes.draws import draw_tallies, draw_views
from patchcert.votes.part import VotePart
from patchcert.votes.scores import SCORE_SCALE, rounded_score
from patchcert.votes.table import VoteTable

__all__ = ["SCORE_SCALE", "VotePart", "VoteTable", "draw_tallies", "draw_views", "rounded_score"]
