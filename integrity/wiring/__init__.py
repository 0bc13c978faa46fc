"""The only place that knows concrete classes: from settings and rules to stores, lanes and their supervisor.

Whatever is opened is closed in reverse order by the AsyncExitStack of whoever asked for it.
"""
