---@meta
--- Made by `build/cab run tests/docs_tables.lua recipe_types > lua/types/recipe.lua`. Types for editors; not loaded by the program.
-- Over 500 lines because it has a line for each key and argument.
-- luacheck: ignore

---@class cab.given.recipe
---@field accumulate? integer a rank's batch goes through the models in so many parts, one after the other, whose gradients add up: the same training in less memory (1)
---@field batch? integer images, or rows of text, of a step: of all ranks together (64)
---@field cache? cab.given.cache files that the teacher's taps and logits are read from in place of running it ({})
---@field capture? boolean on a GPU, steps of fixed shapes are replayed as one graph (true)
---@field checkpoint? cab.given.checkpoint when checkpoints are written and how many are kept ({})
---@field data table what cab.data.KIND{...} returns
---@field device? string cpu, cuda, cuda:N; auto: a GPU if there is one ("auto")
---@field dist? cab.given.dist of several ranks under mpirun or srun, see docs/distributed.md ({})
---@field draw? table charts drawn at the end, in the run's folder: names of cab plot --what ({})
---@field eval? cab.given.eval when and what to evaluate ({})
---@field export? string a file to which the best weights are copied at the end ("")
---@field guard? cab.given.guard what to do about numbers that are not finite, and spikes ({})
---@field log? integer steps between two lines of metrics.jsonl (10)
---@field missing? table data, teacher or student -> what to tell a user whose files are not there ({})
---@field name? string of the run and its folder; "": the file's name ("")
---@field optim? cab.given.optim the optimizer and its schedule ({})
---@field pairs? string|table the layer map: which student layer learns from which teacher layer ("proportional")
---@field precision? "f32"|"tf32"|"bf16" tf32: of matrix products; bf16: of activations; both need a GPU ("f32")
---@field presets? table name -> function(recipe) that changes it, chosen with preset=NAME
---@field seed? integer of weights, data order and augmentation (0)
---@field stages cab.given.stage[] a list, run one after another on the same student
---@field student table what cab.models.KIND{...} returns
---@field teacher? table what cab.models.KIND{...} returns; frozen. Not needed where all losses are vanilla
---@field threads? integer of the CPU; 0: as many as cores (0)

---@class cab.given.cache
---@field coding? "f32"|"f16"|"bf16"|"int8" of taps; int8: 1 byte a feature, a scale a token. Logits are f32 ("bf16")
---@field epochs? integer of images that crops, flips or mixing draw anew: the views of so many epochs, for one seed and batch; training sees these epochs again and again. 0: each image looks the same (0)
---@field limit? number GiB of files above which the cache is refused before it is computed (64)
---@field live? boolean the teacher's weights stay in memory too, for strategies that copy them (false)
---@field path? string the folder, shared by all recipes; "": none. Filled by the first run that lacks something ("")
---@field top? integer of text: so many of each token's largest logits are kept; a soft loss then takes at most as many as its top. 0: none (0)

---@class cab.given.checkpoint
---@field every? integer steps between checkpoints; 0: only at the end and when stopped (500)
---@field keep? integer how many of the newest stay (2)

---@class cab.given.dist
---@field bucket? integer MiB of gradients that travel together, while the backward goes on (32)
---@field check? integer steps between comparisons of all ranks' weights; 0: never (100)
---@field shard? boolean each rank keeps moments and averages of its part of the parameters, and updates that part; the same training, bit by bit (false)
---@field timeout? number seconds after which a rank that does not come is given up, and all end with 69 (300)

---@class cab.given.eval
---@field batch? integer 0: 250 images on the CPU, 512 on a GPU; of text, 8 windows (0)
---@field every? number|string between evaluations, in units as optim.warmup; 0: only at the end (0)
---@field lengths? integer of text: the student's perplexity once more at the end of the run, in windows of 1, 2, 4 .. so many windows of the data; 0: not (0)
---@field metrics? table what is written at each evaluation; align: the R2 of bridges ({ "top1", "top5", "loss", "align" })
---@field shares? boolean also the share of the student's gradient that each loss term has (true)
---@field stride? integer of text: ids from one window to the next; 0: a window (0)
---@field tokens? integer of the test text at most; 0: all (0)
---@field window? integer of text: ids that the model sees at once; 0: a window of the data (0)

---@class cab.given.guard
---@field nonfinite? "stop"|"skip"|"rewind" a loss or gradient that is not finite ends the run with 76, or its step is skipped, or the run goes back to the checkpoint, once a step ("stop")
---@field skips? integer so many skipped steps in a row end the run (3)
---@field spike? number stop, or rewind, at this many times the median gradient norm; 0: off (0)

---@class cab.given.optim
---@field beta1? number decay of the first moment (0.9)
---@field beta2? number decay of the second moment (0.999)
---@field clip? number largest global L2 norm of the gradient; 0: off (0)
---@field cooldown? number|string the same, at low, at the end (0)
---@field decay? number|string the same, the fall of a wsd: its last part before the cooldown ("20 %")
---@field ema? number share of the average of weights kept each step; 0: no average (0)
---@field eps? number added to the root of the second moment (1e-08)
---@field low? number the learning rate at the cosine's end (1e-05)
---@field lr? number the highest learning rate (0.0005)
---@field name? "adamw" may stand first without its key: optim = { "adamw", lr = 1e-3 } ("adamw")
---@field schedule? "constant"|"cosine"|"wsd" of the learning rate over all stages, or over a stage that has its own lr ("cosine")
---@field start? number the learning rate at the warm-up's start (1e-06)
---@field warmup? number|string epochs; or "500 steps", "20M tokens", "10 %" of all steps (0)
---@field weight_decay? number decoupled; not of biases, norms, A_log, D, position and class tokens (0.05)

---@class cab.given.stage
---@field epochs? number length; one of epochs, steps and tokens
---@field loss table<string, number|string|cab.given.term> term -> weight, or { "strategy", weight = w, options }
---@field lr? number given: the stage has a schedule of its own with this highest rate
---@field name? string for the log
---@field steps? integer length in optimizer steps
---@field stop? table a condition that ends the stage before its length
---@field tokens? number|string length in tokens of text, as 2e8 or "200M"
---@field train? table names of what is trained, as { "aligner.*", "student.layers.*.mixer.*" }, * for any text; all without it

---@class cab.given.strategy.attention_bridge
---@field activation? "gelu"|"relu"|"silu"|"tanh" between them ("silu")
---@field control? "none"|"other_image"|"random" what stands in the tap's place where a study asks whether it matters: of the next image, or fixed random numbers ("none")
---@field depth? integer its linear layers; 1: a linear bridge (2)
---@field detach? boolean no gradient to the student, as in the published code: an ablation (false)
---@field frozen? boolean a fixed random bridge: an ablation (false)
---@field heads? "together"|"each" each: a bridge a head ("together")
---@field hidden? integer width of an MLP bridge (128)
---@field kind? "mlp"|"ridge" ridge: the best linear bridge, solved each step, nothing to train ("mlp")
---@field lambda? number of ridge, as a share of the mean square (0.001)
---@field map? "elu"|"exp"|"learned"|"none"|"relu"|"softmax"|"softmax_features"|"softmax_tokens"|"standard" kernel map of the teacher's taps ("standard")
---@field onto? table student tap -> the teacher's tap it is fitted to ({ B = "k", C = "q" })
---@field share? "none"|"layers"|"directions"|"taps"|"all" who has one bridge together ("none")

---@class cab.given.strategy.attention_copy
---@field divergence? "forward"|"reverse"|"jsd" KL(teacher, student), KL(student, teacher), or Jensen-Shannon ("forward")
---@field hard? number weight of the cross-entropy beside it (0)
---@field temperature? number T of both sides; the loss has the factor T^2 (1)
---@field top? integer only the teacher's so many largest logits; 0: all (0)
---@field what? "attention"|"q"|"k"|"v" the student's layers use in place of their own ("attention")

---@class cab.given.strategy.attention_distill
---@field leave? integer so many layers at the student's end alone (0)

---@class cab.given.strategy.hidden_state
---@field activation? "gelu"|"relu"|"silu"|"tanh" between them ("silu")
---@field depth? integer its linear layers; 1: a linear bridge (1)
---@field detach? boolean no gradient to the student, as in the published code: an ablation (false)
---@field distance? "mse"|"cosine" of lifted hidden states ("mse")
---@field frozen? boolean a fixed random bridge: an ablation (false)
---@field heads? "together"|"each" each: a bridge a head ("together")
---@field hidden? integer width of an MLP bridge (128)
---@field kind? "mlp"|"ridge" ridge: the best linear bridge, solved each step, nothing to train ("mlp")
---@field lambda? number of ridge, as a share of the mean square (0.001)
---@field map? "elu"|"exp"|"learned"|"none"|"relu"|"softmax"|"softmax_features"|"softmax_tokens"|"standard" kernel map of the teacher's taps ("standard")
---@field share? "none"|"layers"|"directions"|"taps"|"all" who has one bridge together ("none")

---@class cab.given.strategy.linear_attention
---@field count? integer features of a head; 0: as many as it is wide (0)
---@field distance? "cosine"|"cross_entropy" of the outputs of both attentions, or of their rows ("cosine")
---@field kind? "hedgehog"|"linear" hedgehog: a pair of softmaxes; linear: what a Mamba-2 can begin as ("hedgehog")

---@class cab.given.strategy.linearised
---@field conv? "identity"|"keep" identity: the convolution lets the current token through alone ("identity")
---@field divergence? "forward"|"reverse"|"jsd" KL(teacher, student), KL(student, teacher), or Jensen-Shannon ("forward")
---@field gate? "keep"|"open" open: begins as 1 ("open")
---@field hard? number weight of the cross-entropy beside it (0)
---@field parts? table of the student that take the teacher's weights ({ "mixer", "attention", "mlp", "norms", "embedding", "head" })
---@field strict? boolean what does not fit is an error, else it is told and left (false)
---@field temperature? number T of both sides; the loss has the factor T^2 (1)
---@field top? integer only the teacher's so many largest logits; 0: all (0)

---@class cab.given.strategy.matrix_distill
---@field distance? "cosine"|"cross_entropy"|"mse" of rows, of rows of |M| that sum to 1, of all entries ("cosine")
---@field leave? integer so many layers at the student's end alone (0)

---@class cab.given.strategy.mohawk_hidden

---@class cab.given.strategy.mohawk_orientation
---@field heads? "auto"|"each"|"mean" compared one by one or as their mean; auto: each where both have as many ("auto")

---@class cab.given.strategy.mohawk_transfer
---@field conv? "identity"|"keep" identity: the convolution lets the current token through alone ("keep")
---@field divergence? "forward"|"reverse"|"jsd" KL(teacher, student), KL(student, teacher), or Jensen-Shannon ("forward")
---@field gate? "keep"|"open" open: begins as 1 ("keep")
---@field hard? number weight of the cross-entropy beside it (1)
---@field parts? table of the student that take the teacher's weights ({ "attention", "mlp", "norms", "embedding", "head" })
---@field strict? boolean what does not fit is an error, else it is told and left (false)
---@field temperature? number T of both sides; the loss has the factor T^2 (1)
---@field top? integer only the teacher's so many largest logits; 0: all (0)

---@class cab.given.strategy.soft
---@field divergence? "forward"|"reverse"|"jsd" KL(teacher, student), KL(student, teacher), or Jensen-Shannon ("forward")
---@field hard? number weight of the cross-entropy beside it (0)
---@field temperature? number T of both sides; the loss has the factor T^2 (1)
---@field top? integer only the teacher's so many largest logits; 0: all (0)

---@class cab.given.strategy.vanilla
---@field smoothing? number of the labels (0)

---@class cab.given.strategy.weight_reuse
---@field conv? "identity"|"keep" identity: the convolution lets the current token through alone ("keep")
---@field divergence? "forward"|"reverse"|"jsd" KL(teacher, student), KL(student, teacher), or Jensen-Shannon ("forward")
---@field gate? "keep"|"open" open: begins as 1 ("keep")
---@field hard? number weight of the cross-entropy beside it (0)
---@field parts? table of the student that take the teacher's weights ({ "mixer", "attention", "mlp", "norms", "embedding", "head" })
---@field strict? boolean what does not fit is an error, else it is told and left (false)
---@field temperature? number T of both sides; the loss has the factor T^2 (1)
---@field top? integer only the teacher's so many largest logits; 0: all (0)

---@class cab.given.data.cifar
---@field augment? string RandAugment as timm writes it, rand-m9-mstd0.5-inc1, or 3-augment ("")
---@field cutmix? number alpha of Beta(alpha, alpha); 0: never (0)
---@field erase? number probability that a rectangle becomes noise (0)
---@field flip? boolean mirrored left-right with probability 1/2 (false)
---@field fraction? number of the training images of each class; nested: 5 % is part of 10 % (1)
---@field jitter? number|table of brightness, contrast, saturation: factors 1 - j .. 1 + j (0)
---@field list? string a file of cab data subset: the training images ("")
---@field mean? number|table one number or one a channel, of pixels in 0..1; default: the data set's
---@field mixup? number alpha of Beta(alpha, alpha); 0: never (0)
---@field on_bad? "error"|"skip" damaged images: an error, or left out and counted (above 1 % an error) ("error")
---@field pad? integer random crop after padding each side by so many pixels (0)
---@field repeats? integer of each image in an epoch, which then has that much fewer (1)
---@field root string the folder of the files
---@field seed? integer of fraction and validation: the same images for every method (0)
---@field size? integer side in pixels; default: as in the files
---@field std? number|table the same, the deviation
---@field switch? number probability of cutmix where both are on (0.5)
---@field test? table the folder, or files, of the test split ({ "test_batch.bin" })
---@field threads? integer loader threads; any number gives the same batches (1)
---@field tolerant? boolean warnings of image decoders are counted, not errors (false)
---@field train? table the folder, or files, of the training split ({ "data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin" })
---@field validation? number share of those images of each class, rounded down, that is held out of training: best weights, adaptive weights and ends of stages are then decided on them, not on the test images; nested as fraction (0)

---@class cab.given.data.fashion
---@field augment? string RandAugment as timm writes it, rand-m9-mstd0.5-inc1, or 3-augment ("")
---@field cutmix? number alpha of Beta(alpha, alpha); 0: never (0)
---@field erase? number probability that a rectangle becomes noise (0)
---@field flip? boolean mirrored left-right with probability 1/2 (false)
---@field fraction? number of the training images of each class; nested: 5 % is part of 10 % (1)
---@field jitter? number|table of brightness, contrast, saturation: factors 1 - j .. 1 + j (0)
---@field list? string a file of cab data subset: the training images ("")
---@field mean? number|table one number or one a channel, of pixels in 0..1; default: the data set's
---@field mixup? number alpha of Beta(alpha, alpha); 0: never (0)
---@field on_bad? "error"|"skip" damaged images: an error, or left out and counted (above 1 % an error) ("error")
---@field pad? integer random crop after padding each side by so many pixels (0)
---@field repeats? integer of each image in an epoch, which then has that much fewer (1)
---@field root? string the folder of the files ("data/fashion-mnist")
---@field seed? integer of fraction and validation: the same images for every method (0)
---@field size? integer side in pixels; default: as in the files
---@field std? number|table the same, the deviation
---@field switch? number probability of cutmix where both are on (0.5)
---@field threads? integer loader threads; any number gives the same batches (1)
---@field tolerant? boolean warnings of image decoders are counted, not errors (false)
---@field validation? number share of those images of each class, rounded down, that is held out of training: best weights, adaptive weights and ends of stages are then decided on them, not on the test images; nested as fraction (0)

---@class cab.given.data.folder
---@field augment? string RandAugment as timm writes it, rand-m9-mstd0.5-inc1, or 3-augment ("")
---@field crop? "resized"|"random"|"center"|"none" of training images: resized is RandomResizedCrop ("resized")
---@field crop_ratio? number in tests: the part of the shorter side that is left (0.875)
---@field cutmix? number alpha of Beta(alpha, alpha); 0: never (0)
---@field draft? boolean training images of at least four times the size are shrunk while they are decoded (true)
---@field erase? number probability that a rectangle becomes noise (0)
---@field flip? boolean mirrored left-right with probability 1/2 (false)
---@field fraction? number of the training images of each class; nested: 5 % is part of 10 % (1)
---@field index? string where the list of files is kept; "": in the user's cache, none: nowhere ("")
---@field interpolation? "bicubic"|"bilinear" of resizing; antialiased, Pillow's pixels ("bicubic")
---@field jitter? number|table of brightness, contrast, saturation: factors 1 - j .. 1 + j (0)
---@field list? string a file of cab data subset: the training images ("")
---@field mean? number|table one number or one a channel, of pixels in 0..1; default: the data set's
---@field mixup? number alpha of Beta(alpha, alpha); 0: never (0)
---@field on_bad? "error"|"skip" damaged images: an error, or left out and counted (above 1 % an error) ("error")
---@field pad? integer random crop after padding each side by so many pixels (0)
---@field ratio? table smallest and largest ratio of sides, where crop is resized ({ 0.75, 1.3333333333333 })
---@field repeats? integer of each image in an epoch, which then has that much fewer (1)
---@field root string the folder of the files
---@field scale? table smallest and largest share of the area, where crop is resized ({ 0.08, 1 })
---@field seed? integer of fraction and validation: the same images for every method (0)
---@field size? integer side in pixels; default: as in the files
---@field std? number|table the same, the deviation
---@field switch? number probability of cutmix where both are on (0.5)
---@field test? string the folder, or files, of the test split ("test")
---@field threads? integer loader threads; any number gives the same batches (1)
---@field tolerant? boolean warnings of image decoders are counted, not errors (false)
---@field train? string the folder, or files, of the training split ("train")
---@field validation? number share of those images of each class, rounded down, that is held out of training: best weights, adaptive weights and ends of stages are then decided on them, not on the test images; nested as fraction (0)

---@class cab.given.data.idx
---@field augment? string RandAugment as timm writes it, rand-m9-mstd0.5-inc1, or 3-augment ("")
---@field cutmix? number alpha of Beta(alpha, alpha); 0: never (0)
---@field erase? number probability that a rectangle becomes noise (0)
---@field flip? boolean mirrored left-right with probability 1/2 (false)
---@field fraction? number of the training images of each class; nested: 5 % is part of 10 % (1)
---@field jitter? number|table of brightness, contrast, saturation: factors 1 - j .. 1 + j (0)
---@field list? string a file of cab data subset: the training images ("")
---@field mean? number|table one number or one a channel, of pixels in 0..1; default: the data set's
---@field mixup? number alpha of Beta(alpha, alpha); 0: never (0)
---@field on_bad? "error"|"skip" damaged images: an error, or left out and counted (above 1 % an error) ("error")
---@field pad? integer random crop after padding each side by so many pixels (0)
---@field repeats? integer of each image in an epoch, which then has that much fewer (1)
---@field root? string put before the four names; "": none ("")
---@field seed? integer of fraction and validation: the same images for every method (0)
---@field size? integer side in pixels; default: as in the files
---@field std? number|table the same, the deviation
---@field switch? number probability of cutmix where both are on (0.5)
---@field test_images string IDX file, may be .gz
---@field test_labels string IDX file, may be .gz
---@field threads? integer loader threads; any number gives the same batches (1)
---@field tolerant? boolean warnings of image decoders are counted, not errors (false)
---@field train_images string IDX file, may be .gz
---@field train_labels string IDX file, may be .gz
---@field validation? number share of those images of each class, rounded down, that is held out of training: best weights, adaptive weights and ends of stages are then decided on them, not on the test images; nested as fraction (0)

---@class cab.given.data.imagenet
---@field augment? string RandAugment as timm writes it, rand-m9-mstd0.5-inc1, or 3-augment ("")
---@field crop? "resized"|"random"|"center"|"none" of training images: resized is RandomResizedCrop ("resized")
---@field crop_ratio? number in tests: the part of the shorter side that is left (0.875)
---@field cutmix? number alpha of Beta(alpha, alpha); 0: never (0)
---@field draft? boolean training images of at least four times the size are shrunk while they are decoded (true)
---@field erase? number probability that a rectangle becomes noise (0)
---@field flip? boolean mirrored left-right with probability 1/2 (false)
---@field fraction? number of the training images of each class; nested: 5 % is part of 10 % (1)
---@field index? string where the list of files is kept; "": in the user's cache, none: nowhere ("")
---@field interpolation? "bicubic"|"bilinear" of resizing; antialiased, Pillow's pixels ("bicubic")
---@field jitter? number|table of brightness, contrast, saturation: factors 1 - j .. 1 + j (0)
---@field list? string a file of cab data subset: the training images ("")
---@field mean? number|table one number or one a channel, of pixels in 0..1; default: the data set's
---@field mixup? number alpha of Beta(alpha, alpha); 0: never (0)
---@field on_bad? "error"|"skip" damaged images: an error, or left out and counted (above 1 % an error) ("error")
---@field pad? integer random crop after padding each side by so many pixels (0)
---@field ratio? table smallest and largest ratio of sides, where crop is resized ({ 0.75, 1.3333333333333 })
---@field repeats? integer of each image in an epoch, which then has that much fewer (1)
---@field root? string the folder of the files ("data/imagenet")
---@field scale? table smallest and largest share of the area, where crop is resized ({ 0.08, 1 })
---@field seed? integer of fraction and validation: the same images for every method (0)
---@field size? integer side in pixels; default: as in the files
---@field std? number|table the same, the deviation
---@field switch? number probability of cutmix where both are on (0.5)
---@field test? string the folder, or files, of the test split ("val")
---@field threads? integer loader threads; any number gives the same batches (1)
---@field tolerant? boolean warnings of image decoders are counted, not errors (false)
---@field train? string the folder, or files, of the training split ("train")
---@field validation? number share of those images of each class, rounded down, that is held out of training: best weights, adaptive weights and ends of stages are then decided on them, not on the test images; nested as fraction (0)

---@class cab.given.data.text
---@field ending? integer id that ends documents in such files; -1: the tokenizer's (-1)
---@field field? string of each line of a .jsonl file ("text")
---@field holdout? number share of the windows that are for tests (0.05)
---@field length? integer ids of a window (1024)
---@field raw? ""|"u16"|"u32" integer type of token files without a header ("")
---@field test? string|table "": the last holdout of the training windows ("")
---@field tokenizer? string|table gpt2, phi, gpt2:MERGES, a file or a model folder ("gpt2")
---@field train? string|table a file or a list: .txt, .jsonl, either .gz, or a token file; default: an embedded novel ("data/austen/persuasion.txt.gz")
---@field validation? number share of the training windows, the last of them, that is held out of training; decides as validation of images does (0)
---@field vocab? integer of token files that do not say; 0: the tokenizer's (0)

---@class cab.given.models.gpt2
---@field depth? integer layers
---@field dim? integer width of the residual stream
---@field dtype? "f32"|"f64" f64 on the CPU only
---@field heads? integer attention heads, or heads of x
---@field layout? "in_out"|"out_in" of weights: GPT-2's [in,out] or minGPT's [out,in] ("in_out")
---@field positions? integer longest sequence (1024)
---@field ratio? integer width of the MLP as a multiple of dim (4)
---@field seed? integer of the initial weights; default: the recipe's
---@field size? "distil"|"large"|"medium"|"small"|"xl" a published size; keys below win over it ("small")
---@field tied? boolean the head is the embedding table (true)
---@field vocab? integer ids; default: the data's
---@field weights? string a weight file of any known format and layout; "": untrained

---@class cab.given.models.mamba
---@field conv? integer width of the causal convolution (4)
---@field decay? "identity"|"s4d" identity: A = -e^-20, so that a step keeps the state (the paper's); s4d: A = -(1..N) ("s4d")
---@field depth? integer layers
---@field dim? integer width of the residual stream
---@field dtype? "f32"|"f64" f64 on the CPU only
---@field expand? integer inner width as a multiple of dim (2)
---@field pad? integer the embedding's rows are a multiple of this (8)
---@field rank? integer of dt's projection; default: ceil(dim / 16)
---@field seed? integer of the initial weights; default: the recipe's
---@field size? "1.4b"|"130m"|"2.8b"|"370m"|"790m" a published size; keys below win over it ("130m")
---@field state? integer N, numbers of state a channel (16)
---@field vocab? integer ids; default: the data's
---@field weights? string a weight file of any known format and layout; "": untrained

---@class cab.given.models.mamba2
---@field chunk? integer tokens that the scan takes at once (64)
---@field conv? integer width of the causal convolution (4)
---@field depth? integer layers
---@field dim? integer width of the residual stream
---@field dtype? "f32"|"f64" f64 on the CPU only
---@field expand? integer inner width as a multiple of dim (2)
---@field groups? integer of B and C; default: as many as heads, in mamba2 1 (1)
---@field head? integer size of a head (64)
---@field pad? integer the embedding's rows are a multiple of this (8)
---@field seed? integer of the initial weights; default: the recipe's
---@field size? "1.3b"|"130m"|"2.7b"|"370m"|"780m" a published size; keys below win over it ("130m")
---@field state? integer N, numbers of state a channel (128)
---@field vocab? integer ids; default: the data's
---@field weights? string a weight file of any known format and layout; "": untrained

---@class cab.given.models.phi
---@field base? number of the rotary angles (10000)
---@field depth? integer layers
---@field dim? integer width of the residual stream
---@field dtype? "f32"|"f64" f64 on the CPU only
---@field heads? integer attention heads, or heads of x
---@field positions? integer longest sequence (2048)
---@field ratio? integer width of the MLP as a multiple of dim (4)
---@field rotary? integer elements of a head that turn; default: half of it
---@field seed? integer of the initial weights; default: the recipe's
---@field size? "1.5"|"2" a published size; keys below win over it ("1.5")
---@field vocab? integer ids; default: the data's
---@field weights? string a weight file of any known format and layout; "": untrained

---@class cab.given.models.phi_mamba
---@field attention? table layers (from 1) that have Phi's attention instead of the scan ({})
---@field base? number of the rotary angles (10000)
---@field chunk? integer tokens that the scan takes at once (64)
---@field conv? integer width of the causal convolution (4)
---@field depth? integer layers
---@field dim? integer width of the residual stream
---@field dtype? "f32"|"f64" f64 on the CPU only
---@field expand? integer inner width as a multiple of dim (1)
---@field groups? integer of B and C; default: as many as heads, in mamba2 1
---@field heads? integer attention heads, or heads of x
---@field ratio? integer width of the MLP as a multiple of dim (4)
---@field rotary? integer elements of a head that turn; default: half of it
---@field seed? integer of the initial weights; default: the recipe's
---@field size? "1.5b"|"123m" a published size; keys below win over it ("123m")
---@field state? integer N, numbers of state a channel
---@field vocab? integer ids; default: the data's
---@field weights? string a weight file of any known format and layout; "": untrained

---@class cab.given.models.vim
---@field channels? integer of images; default: the data's
---@field class_token? "middle"|"head"|"double" its place among the patches; double: one at each end ("middle")
---@field classes? integer default: the data's
---@field conv? integer width of the causal convolution (4)
---@field decay? "identity"|"s4d" identity: A = -e^-20, so that a step keeps the state (the paper's); s4d: A = -(1..N) ("identity")
---@field depth? integer layers
---@field dim? integer width of the residual stream
---@field dtype? "f32"|"f64" f64 on the CPU only
---@field expand? integer inner width as a multiple of dim (2)
---@field halve? boolean the mean of both directions, not their sum (true)
---@field image? integer side of an image in pixels; default: the data's
---@field key? string the state dict of a PyTorch file that holds several
---@field mean? number|table of its own pixels in 0..1, one number or one a channel; default: as the data gives them
---@field patch? integer side of a patch in pixels (16)
---@field rank? integer of dt's projection; default: ceil(dim / 16)
---@field recompute? boolean backward runs the mixers again instead of keeping their tensors: a sixth of their memory (false)
---@field refit? string what of the weights may be changed to fit: head, channels, or both
---@field resize? "bicubic"|"antialias" of position embeddings: as PyTorch's bicubic or timm's antialiased one ("bicubic")
---@field seed? integer of the initial weights; default: the recipe's
---@field size? "base"|"small"|"tiny" a published size; keys below win over it ("tiny")
---@field state? integer N, numbers of state a channel (16)
---@field std? number|table the same, the deviation
---@field stride? integer of patches; default: patch
---@field weights? string a weight file of any known format and layout; "": untrained

---@class cab.given.models.vit
---@field channels? integer of images; default: the data's
---@field classes? integer default: the data's
---@field depth? integer layers
---@field dim? integer width of the residual stream
---@field distilled? boolean a second token with a head of its own (DeiT); logits are the mean of both (false)
---@field dtype? "f32"|"f64" f64 on the CPU only
---@field heads? integer attention heads, or heads of x
---@field image? integer side of an image in pixels; default: the data's
---@field key? string the state dict of a PyTorch file that holds several
---@field mean? number|table of its own pixels in 0..1, one number or one a channel; default: as the data gives them
---@field patch? integer side of a patch in pixels (16)
---@field ratio? integer width of the MLP as a multiple of dim (4)
---@field refit? string what of the weights may be changed to fit: head, channels, or both
---@field resize? "bicubic"|"antialias" of position embeddings: as PyTorch's bicubic or timm's antialiased one ("bicubic")
---@field seed? integer of the initial weights; default: the recipe's
---@field size? "base"|"large"|"small"|"tiny" a published size; keys below win over it ("tiny")
---@field std? number|table the same, the deviation
---@field weights? string a weight file of any known format and layout; "": untrained

---@class cab.given.compare
---@field base cab.given.recipe a recipe's table: what all runs have in common
---@field name? string of the folder of all runs; "": the file's name ("")
---@field pictures? integer test images in attention.png (8)
---@field runs cab.given.recipe[] a list of { name =, ... }: the fields that differ from base
---@field sample? string of text: a prompt that each run's best weights continue; "": none ("")

---@class cab.given.study
---@field about? string the question; the title of the picture ("")
---@field against? string an arm that the others are compared with, seed by seed; "": none ("")
---@field arms table a list of { name =, set = { "key=value" }, ... }: overrides, and fields in place of the base's
---@field base string|cab.given.recipe a recipe file, or the fields of a recipe
---@field metric? "top1"|"top5"|"loss"|"perplexity"|"lengths" what the table has, of the last evaluation; lengths: a row for each length of a window, as eval.lengths measures them ("top1")
---@field seeds? table the recipe's seed of each repetition ({ 0, 1, 2 })
---@field vary? table key of the recipe -> list of values: every arm runs with each combination ({})

---@class cab.given.term : cab.given.strategy.attention_bridge, cab.given.strategy.attention_copy, cab.given.strategy.attention_distill, cab.given.strategy.hidden_state, cab.given.strategy.linear_attention, cab.given.strategy.linearised, cab.given.strategy.matrix_distill, cab.given.strategy.mohawk_hidden, cab.given.strategy.mohawk_orientation, cab.given.strategy.mohawk_transfer, cab.given.strategy.soft, cab.given.strategy.vanilla, cab.given.strategy.weight_reuse
---@field [1]? string|table a strategy's name, or one of your own
---@field weight? number

---@class cab.data
---@field cifar fun(options?: cab.given.data.cifar): table
---@field fashion fun(options?: cab.given.data.fashion): table
---@field folder fun(options?: cab.given.data.folder): table
---@field idx fun(options?: cab.given.data.idx): table
---@field imagenet fun(options?: cab.given.data.imagenet): table
---@field text fun(options?: cab.given.data.text): table

---@class cab.models
---@field gpt2 fun(options?: cab.given.models.gpt2): table
---@field mamba fun(options?: cab.given.models.mamba): table
---@field mamba2 fun(options?: cab.given.models.mamba2): table
---@field phi fun(options?: cab.given.models.phi): table
---@field phi_mamba fun(options?: cab.given.models.phi_mamba): table
---@field vim fun(options?: cab.given.models.vim): table
---@field vit fun(options?: cab.given.models.vit): table

---@class cab
---@field op cab.op
---@field data cab.data
---@field models cab.models
---@field recipe fun(given: cab.given.recipe): table
---@field compare fun(given: cab.given.compare): table
---@field study fun(given: cab.given.study): table
local cab = {}
cab.audit = require "cab.audit"
cab.bridges = require "cab.bridges"
cab.charts = require "cab.charts"
cab.cli = require "cab.cli"
cab.corpus = require "cab.corpus"
cab.divergence = require "cab.divergence"
cab.eval = require "cab.eval"
cab.features = require "cab.features"
cab.gradcheck = require "cab.gradcheck"
cab.harness = require "cab.harness"
cab.job = require "cab.job"
cab.layers = require "cab.layers"
cab.maps = require "cab.maps"
cab.mixing = require "cab.mixing"
cab.names = require "cab.names"
cab.nn = require "cab.nn"
cab.options = require "cab.options"
cab.pairs = require "cab.pairs"
cab.pictures = require "cab.pictures"
cab.plan = require "cab.plan"
cab.plot = require "cab.plot"
cab.recall = require "cab.recall"
cab.recompute = require "cab.recompute"
cab.reference = require "cab.reference"
cab.repl = require "cab.repl"
cab.report = require "cab.report"
cab.reuse = require "cab.reuse"
cab.runs = require "cab.runs"
cab.schedule = require "cab.schedule"
cab.session = require "cab.session"
cab.similarity = require "cab.similarity"
cab.statistics = require "cab.statistics"
cab.strategy = require "cab.strategy"
cab.taps = require "cab.taps"
cab.tasks = require "cab.tasks"
cab.tokenizer = require "cab.tokenizer"
cab.train = require "cab.train"
cab.weights = require "cab.weights"
