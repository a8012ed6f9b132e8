def leaderboard(r): return r
def render(r, f): return "\n".join(f"{x.summary()} {x.seconds:.1f}s" for x in r)
