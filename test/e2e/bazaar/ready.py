# Ends well when somebody listens on each of the ports that are its arguments.
import socket, sys

for port in sys.argv[1:]:
    socket.create_connection(("127.0.0.1", int(port)), 1).close()
