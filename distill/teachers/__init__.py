"""Teachers: models, servers and files that give the answers and distributions that students learn from."""
