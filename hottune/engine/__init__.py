"""Everything that knows llama.cpp: pin, build, argv and env of a Placement, the server process."""
