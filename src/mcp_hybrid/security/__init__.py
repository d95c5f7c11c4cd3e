"""Who may ask: hosts, origins, cross-origin answers, and the owner a request acts for. Knows nothing of sessions.

hosts, cors          Host and Origin, and what pages may read
patterns             what an operator may write for a host or an origin, and what it matches
owner                the principal, and the seam for whoever finds it out
bearer               tokens: from a request to its caller, or its refusal
metadata             what those are told who have no good token
verifiers            API keys and JWTs
api_keys, jwks       the file of keys, and how one is made; the issuer's keys, and how they are had
watched              a file that is read again when it changes
contained            keeps what a verifier raises with the request it was asked about
lapse                when a stream's credential stops being good
"""
