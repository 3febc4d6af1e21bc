"""The command openfl-audio: options made from pydantic models, over the functions of the packages below."""
