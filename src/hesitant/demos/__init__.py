"""The demos, as functions: `hesitant demo NAME` calls them.

Nothing is imported here, so that `hesitant --help` need not wait for matplotlib: import `hesitant.demos.two_moons` or
`hesitant.demos.digits`.
"""
