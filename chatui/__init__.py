"""The step before Chat UI starts: chatui.env as people write it becomes the file that Chat UI reads."""
