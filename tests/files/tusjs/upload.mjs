// Upload a file with tus-js-client, as a browser does: node upload.mjs FILE, with the rest as JSON on standard input.
// Says each offset that the server has taken, a line each, and the upload's address last.

import { createReadStream, readFileSync } from "node:fs"
import * as tus from "tus-js-client"

const { endpoint, headers, metadata, chunkSize, resume } = JSON.parse(readFileSync(0, "utf-8"))
const upload = new tus.Upload(createReadStream(process.argv[2]), {
  endpoint,
  headers,
  metadata,
  chunkSize,
  uploadUrl: resume,
  uploadDataDuringCreation: !resume,
  retryDelays: [0, 300, 1000, 2000, 3000, 3000, 3000],
  onChunkComplete: (_, taken) => console.log(taken),
  onUploadUrlAvailable: () => console.log(upload.url),
  onError: (error) => {
    console.error(error.message)
    process.exit(1)
  },
  onSuccess: () => console.log(upload.url),
})
upload.start()
