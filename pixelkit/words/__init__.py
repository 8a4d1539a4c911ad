"""What is seen, in the words of a caption: colours and directions."""
