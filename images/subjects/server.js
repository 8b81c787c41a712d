// A web server with state in memory, that counts beside its work.
//
// Usage: node server.js LOG [PORT]
//
// GET / answers with its state as JSON; PUT /KEY keeps the body under KEY. The first line of the log tells the
// port. SIGTERM ends it with exit code 0.
'use strict';

const crypto = require('crypto');
const fs = require('fs');
const http = require('http');

const [log, port = '0'] = process.argv.slice(2);
const fd = fs.openSync(log, 'a');
const kept = new Map();
let tick = 0;
let requests = 0;
let immediates = 0;

function write(line) {
  fs.writeSync(fd, JSON.stringify(line) + '\n');
}

function state() {
  const digest = crypto.createHash('sha256');
  for (const [key, value] of kept) digest.update(`${key}=${value};`);
  return {
    tick,
    pid: process.pid,
    requests,
    immediates,
    entries: kept.size,
    digest: digest.digest('hex'),
    uptime_ms: process.uptime() * 1000,
  };
}

const server = http.createServer((request, response) => {
  requests += 1;
  const body = [];
  request.on('data', (piece) => body.push(piece));
  request.on('end', () => {
    if (request.method === 'PUT') kept.set(request.url.slice(1), Buffer.concat(body).toString());
    // A connection that stayed open would be part of the next dump.
    response.writeHead(200, { 'Content-Type': 'application/json', Connection: 'close' });
    response.end(JSON.stringify(state()));
  });
});

process.on('SIGTERM', () => process.exit(0));

server.listen(Number(port), '127.0.0.1', () => {
  write({ port: server.address().port });
  setInterval(() => {
    tick += 1;
    setImmediate(() => { immediates += 1; });
    write(state());
  }, 20);
});
