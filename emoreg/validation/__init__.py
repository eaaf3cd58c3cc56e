"""What emotion vectors are tested by before they are trusted."""
