"""The oracle: random histories on a database with native foreign keys, and the same by events on stores without.
`make oracle`; docs/proof.md tells what it does.
"""
