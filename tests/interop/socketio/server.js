// A Socket.IO server that says its name; prints its port.
const { createServer } = require('http');
const { Server } = require('socket.io');

const name = process.argv[2];
const http = createServer();
new Server(http).on('connection', (socket) => socket.on('who', (answer) => answer(name)));
http.listen(0, '127.0.0.1', () => console.log(http.address().port));
