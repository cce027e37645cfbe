"""The live page of one topic: what was saved is drawn again at once.

The server (`server`, `studio`, `watcher`) is light; work is done by processes that were forked warm (`forks`)
and import the sources as they are now (`tasks`, `moment`). The page is static: HTML, CSS and ES modules in `page/`.
"""
