'use strict';
// Loaded before a program: kills it, as `kill -9` does, before or after the n-th change of the file
// system that it makes (KILL_AT), counted from 1. What runs of the operation itself is left to the
// system.

const fs = require('node:fs/promises');

const [count, place] = (process.env.KILL_AT ?? '').split(' ');
let left = Number(count);

for (const name of ['open', 'rename', 'rm', 'writeFile', 'mkdir']) {
  const original = fs[name];
  fs[name] = async (...args) => {
    const changes = name !== 'open' || String(args[1]).startsWith('w');
    const isLast = changes && --left === 0;
    if (isLast && place === 'before') process.kill(process.pid, 'SIGKILL');
    const result = await original(...args);
    if (isLast && place === 'after') process.kill(process.pid, 'SIGKILL');
    return result;
  };
}
