"""`uvmshare demo`: a real guest that gets directories and loses them again, each step shown and checked."""
