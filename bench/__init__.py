"""Performance claims as commands. A worker that runs inside of one takes memory as the service does."""

from tallyman.memory import use_one_arena

use_one_arena()
