"""From a catalogue to the vectors, items, thumbnails and rejects of an index: nothing lost, nothing done twice.

    intake      the catalogue into shards, for index.build and index.update, which put them into a generation
    plan        what decides the shards, and the folder they are kept in until then
    claims      which process encodes which shard
    cut         the catalogue's stream into shards of consecutive rows
    lookup      before encoding: how long a row is, and whether its vector is `known` already
    prepare     images opened, thumbnails made, batches collated: what worker processes do
    workers     those processes, and `pipe`, by which batches come back
    encode      one shard after the other through the model
    shard       what came of its rows, and its files
    assemble    finished shards, one after the other, into one folder

`query` is for searching: the embedder that an index names, and the vector of a query.
"""
